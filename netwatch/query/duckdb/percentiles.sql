-- Latency by host and hour: half of the samples, 95 % and 99 % of them took at most so many ms.
-- since: 1d
-- A percentile is a latency that was measured (nearest rank). Equal ones are counted first: an aggregate that holds
-- every sample could not leave the memory, these counts can.
WITH counted AS (
    SELECT host, date_trunc('hour', received_at) AS hour, latency_ms, count(*) AS samples
    FROM samples
    WHERE latency_ms IS NOT NULL
    GROUP BY ALL
), ranked AS (
    SELECT host, hour, latency_ms,
        sum(samples) OVER (PARTITION BY host, hour ORDER BY latency_ms) AS rank,
        sum(samples) OVER (PARTITION BY host, hour) AS total
    FROM counted
)
SELECT
    host,
    hour,
    max(total)::BIGINT AS samples,
    min(latency_ms) FILTER (rank >= 0.50 * total) AS p50_ms,
    min(latency_ms) FILTER (rank >= 0.95 * total) AS p95_ms,
    min(latency_ms) FILTER (rank >= 0.99 * total) AS p99_ms
FROM ranked
GROUP BY host, hour
ORDER BY host, hour;

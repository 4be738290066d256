-- Latency by host and hour: half of the samples, 95 % and 99 % of them took at most so many ms.
-- since: 1d
-- A percentile is a latency that was measured (nearest rank).
WITH counted AS (
    SELECT host, toStartOfHour(received_at) AS hour, latency_ms, count() AS samples
    FROM samples(since = {since:String}, until = {until:String})
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
    max(total) AS samples,
    minIf(latency_ms, rank >= 0.50 * total) AS p50_ms,
    minIf(latency_ms, rank >= 0.95 * total) AS p95_ms,
    minIf(latency_ms, rank >= 0.99 * total) AS p99_ms
FROM ranked
GROUP BY host, hour
ORDER BY host, hour;

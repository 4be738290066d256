-- The hosts that fail most, then the slowest.
-- since: 1h
SELECT
    host,
    count(*) AS samples,
    count(*) FILTER (error IS NOT NULL) AS failed,
    round(100 * (count(*) FILTER (error IS NOT NULL)) / count(*), 2) AS failed_percent,
    round(avg(latency_ms), 1) AS mean_ms,
    round(max(latency_ms), 1) AS max_ms,
    count(DISTINCT client) AS clients
FROM samples
GROUP BY host
ORDER BY failed / count(*) DESC, mean_ms DESC NULLS LAST, host
LIMIT 20;

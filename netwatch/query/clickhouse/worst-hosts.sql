-- The hosts that fail most, then the slowest.
-- since: 1h
SELECT
    host,
    count() AS samples,
    countIf(error IS NOT NULL) AS failed,
    round(100 * countIf(error IS NOT NULL) / count(), 2) AS failed_percent,
    round(avg(latency_ms), 1) AS mean_ms,
    round(max(latency_ms), 1) AS max_ms,
    uniqExact(client) AS clients
FROM samples(since = {since:String}, until = {until:String})
GROUP BY host
ORDER BY countIf(error IS NOT NULL) / count() DESC, mean_ms DESC NULLS LAST, host
LIMIT 20;

-- Clients that have reported, and for a quarter of an hour have not.
-- since: 1d
SELECT
    client,
    max(received_at) AS last_seen,
    dateDiff('minute', last_seen, parseDateTime64BestEffort({until:String}, 6, 'UTC')) AS silent_minutes,
    count() AS reports,
    argMax(server, received_at) AS last_server
FROM reports(since = {since:String}, until = {until:String})
WHERE kind = 'report'
GROUP BY client
HAVING last_seen <= parseDateTime64BestEffort({until:String}, 6, 'UTC') - INTERVAL 15 MINUTE
ORDER BY last_seen DESC, client;

-- Clients that have reported, and for a quarter of an hour have not.
-- since: 1d
SELECT
    client,
    max(received_at) AS last_seen,
    date_diff('minute', last_seen, getvariable('now')) AS silent_minutes,
    count(*) AS reports,
    arg_max(server, received_at) AS last_server
FROM reports
WHERE kind = 'report'
GROUP BY client
HAVING last_seen <= getvariable('now') - INTERVAL 15 MINUTE
ORDER BY last_seen DESC, client;

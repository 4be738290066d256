-- Reports by server and kind.
-- since: 1d
SELECT
    server,
    kind,
    count(*) AS reports,
    count(DISTINCT client) AS clients,
    min(received_at) AS first_at,
    max(received_at) AS last_at
FROM reports
GROUP BY server, kind
ORDER BY server, kind;

-- What went wrong: each error text, how often, at how many hosts, seen by how many clients.
-- since: 1d
SELECT
    error,
    count() AS samples,
    uniqExact(host) AS hosts,
    uniqExact(client) AS clients,
    min(received_at) AS first_at,
    max(received_at) AS last_at
FROM samples(since = {since:String}, until = {until:String})
WHERE error IS NOT NULL
GROUP BY error
ORDER BY samples DESC, error;

-- Of the requests that got as far as each phase of Network Error Logging, how many passed it, by site.
-- since: 1d
-- A request goes through dns, then connection, then application; a success is reported with the last. Each report
-- counts for 1 / sampling_fraction requests.
WITH counted AS (
    SELECT site, phase, sum(weight) AS requests, sum(weight) FILTER (type <> 'ok') AS failed
    FROM browser_reports
    WHERE kind = 'network-error' AND phase IN ('dns', 'connection', 'application')
    GROUP BY ALL
), reached AS (
    SELECT site, phase, coalesce(failed, 0) AS failed,
        sum(requests) OVER (
            PARTITION BY site
            ORDER BY CASE phase WHEN 'application' THEN 1 WHEN 'connection' THEN 2 ELSE 3 END
        ) AS requests
    FROM counted
)
SELECT
    site,
    phase,
    round(requests, 3) AS requests,
    round(failed, 3) AS failed,
    round(100 * (1 - failed / requests), 3) AS available_percent
FROM reached
ORDER BY site, CASE phase WHEN 'dns' THEN 1 WHEN 'connection' THEN 2 ELSE 3 END;

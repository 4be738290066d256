-- Of the requests that got as far as each phase of Network Error Logging, how many passed it, by site.
-- since: 1d
-- A request goes through dns, then connection, then application; a success is reported with the last. Each report
-- counts for 1 / sampling_fraction requests.
WITH counted AS (
    SELECT site, phase, sum(weight) AS requests, coalesce(sumIf(weight, type <> 'ok'), 0) AS failed
    FROM browser_reports(since = {since:String}, until = {until:String})
    WHERE kind = 'network-error' AND phase IN ('dns', 'connection', 'application')
    GROUP BY ALL
), reached AS (
    SELECT site, phase, failed,
        sum(requests) OVER (
            PARTITION BY site
            ORDER BY multiIf(phase = 'application', 1, phase = 'connection', 2, 3)
        ) AS reached_requests
    FROM counted
)
SELECT
    site,
    phase,
    round(reached_requests, 3) AS requests,
    round(reached.failed, 3) AS failed,
    round(100 * (1 - reached.failed / reached_requests), 3) AS available_percent
FROM reached
ORDER BY site, multiIf(phase = 'dns', 1, phase = 'connection', 2, 3);

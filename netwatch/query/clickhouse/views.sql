-- The same views in ClickHouse, over the bucket. Make once, with your names, what they read with:
--
--   CREATE NAMED COLLECTION netwatch AS url = 'https://s3.example.org/BUCKET/PREFIX/date=*/reports-*.jsonl.zst',
--       access_key_id = '…', secret_access_key = '…';
--
-- Each view takes `since` and `until`, text such as '2026-11-22T10:00:00Z': objects whose names say that they hold
-- nothing of that time are listed, and not fetched. A name's time is at most 5 s after a line's, and before it by the
-- server's seal_after_s: where that is more than an hour, write more than 3665 s in the first view. A compacted object's
-- name has two times, of the first and the last file that went into it.
--
-- On a cluster, write s3Cluster('CLUSTER', netwatch, …) in the first view: its hosts fetch and filter, each its share.

CREATE VIEW lines AS
SELECT substring(line, 8, 36) AS id, line
FROM s3(netwatch, format = 'LineAsString', structure = 'line String')
WHERE substring(_file, if(substring(_file, 33, 2) = '--', 35, 9), 24) >= formatDateTime(
        parseDateTimeBestEffort({since:String}, 'UTC') - INTERVAL 3665 SECOND, '%Y-%m-%dT%H-%i-%S', 'UTC')
    AND _file < concat('reports-', formatDateTime(
        parseDateTimeBestEffort({until:String}, 'UTC') + INTERVAL 6 SECOND, '%Y-%m-%dT%H-%i-%S', 'UTC'))
    AND substring(line, 60, 26) >= formatDateTime(
        parseDateTime64BestEffort({since:String}, 6, 'UTC'), '%Y-%m-%dT%H:%i:%S.%f', 'UTC')
    AND substring(line, 60, 26) < formatDateTime(
        parseDateTime64BestEffort({until:String}, 6, 'UTC'), '%Y-%m-%dT%H:%i:%S.%f', 'UTC');

-- Of the lines with one id, the one that was received first.
CREATE VIEW once AS
SELECT id, line
FROM lines(since = {since:String}, until = {until:String})
WHERE toUUID(id) NOT IN (
    SELECT toUUID(id) FROM lines(since = {since:String}, until = {until:String}) GROUP BY 1 HAVING count() > 1)
UNION ALL
SELECT id, argMin(line, (substring(line, 60, 27), line)) AS line
FROM lines(since = {since:String}, until = {until:String})
WHERE toUUID(id) IN (
    SELECT toUUID(id) FROM lines(since = {since:String}, until = {until:String}) GROUP BY 1 HAVING count() > 1)
GROUP BY id;

CREATE VIEW reports AS
SELECT
    id,
    parseDateTime64BestEffort(substring(line, 60, 27), 6, 'UTC') AS received_at,
    parseDateTime64BestEffortOrNull(JSONExtractString(line, 'generatedAt'), 6, 'UTC') AS generated_at,
    JSONExtractString(line, 'kind') AS kind,
    JSONExtractString(line, 'server') AS server,
    JSONExtract(line, 'address', 'Nullable(String)') AS address,
    JSONExtract(line, 'report', 'clientId', 'Nullable(String)') AS client,
    JSONExtractRaw(line, 'report') AS report
FROM once(since = {since:String}, until = {until:String});

CREATE VIEW samples AS
SELECT
    id,
    received_at,
    if(sample.t BETWEEN 0 AND 7258118399999, fromUnixTimestamp64Milli(assumeNotNull(sample.t), 'UTC'), NULL) AS time,
    server,
    client,
    host,
    url,
    status,
    sample.latency AS latency_ms,
    sample.error AS error
FROM (
    SELECT id, received_at, server, client, host.name AS host, host.url AS url, host.status AS status,
        arrayJoin(host.history) AS sample
    FROM (
        SELECT id, parseDateTime64BestEffort(substring(line, 60, 27), 6, 'UTC') AS received_at, members.server AS server,
            members.report.clientId AS client, arrayJoin(members.report.hosts) AS host
        FROM (
            SELECT id, line, JSONExtract(line, 'Tuple(server String, report Tuple(clientId String, hosts Array(Tuple(
                name String, url String, status String, history Array(Tuple(
                    t Nullable(Int64), latency Nullable(Float64), error Nullable(String)))))))') AS members
            FROM once(since = {since:String}, until = {until:String})
            WHERE substring(line, 89, 15) = '"kind":"report"'
        )
    )
);

CREATE VIEW browser_reports AS
SELECT
    id,
    parseDateTime64BestEffort(substring(line, 60, 27), 6, 'UTC') AS received_at,
    parseDateTime64BestEffortOrNull(members.generatedAt, 6, 'UTC') AS generated_at,
    members.server AS server,
    members.kind AS kind,
    members.report.url AS url,
    extract(members.report.url, '^[a-zA-Z][a-zA-Z0-9+.-]*://([^/?#]*)') AS site,
    members.report.user_agent AS user_agent,
    members.report.body.phase AS phase,
    members.report.body.type AS type,
    members.report.body.status_code AS status_code,
    members.report.body.server_ip AS server_ip,
    members.report.body.protocol AS protocol,
    members.report.body.elapsed_time AS elapsed_ms,
    members.report.body.sampling_fraction AS sampling_fraction,
    if(members.report.body.sampling_fraction > 0 AND members.report.body.sampling_fraction <= 1,
        1 / members.report.body.sampling_fraction, 1) AS weight,
    JSONExtractRaw(line, 'report') AS report
FROM (
    SELECT id, line, JSONExtract(line, 'Tuple(generatedAt String, kind String, server String, report Tuple(
        url Nullable(String), user_agent Nullable(String), body Tuple(phase Nullable(String), type Nullable(String),
            status_code Nullable(Int64), server_ip Nullable(String), protocol Nullable(String),
            elapsed_time Nullable(Float64), sampling_fraction Nullable(Float64))))') AS members
    FROM once(since = {since:String}, until = {until:String})
    WHERE substring(line, 89, 15) <> '"kind":"report"'
);

-- What every question starts from. Four variables are set before:
--   files           the sealed files to read, a list of paths
--   since, until    a line is wanted if its receivedAt, as text, is at or after the first and before the second
--   max_line_bytes  the longest line
--
-- Lines are read as text, and each is taken apart once: read_json took forty times as long here (DuckDB 2.0.1, zstd).
-- In the text the id is always at 8, receivedAt at 60; a client's report has its kind at 89, a browser's generatedAt.

CREATE VIEW lines AS
SELECT substr(line, 8, 36) AS id, line
FROM read_csv(
    getvariable('files'), columns = {line: 'VARCHAR'}, auto_detect = false, header = false, delim = chr(0), quote = '',
    escape = '', compression = 'zstd', max_line_size = getvariable('max_line_bytes'),
    buffer_size = 2 * getvariable('max_line_bytes')
)
WHERE substr(line, 60, 27) >= getvariable('since') AND substr(line, 60, 27) < getvariable('until');

-- What repeated.sql finds.
CREATE TABLE repeated (id UUID);
CREATE TABLE first_of_repeated (id VARCHAR, line VARCHAR);

CREATE VIEW once AS
SELECT id, line FROM lines WHERE id::UUID NOT IN (SELECT id FROM repeated)
UNION ALL
SELECT id, line FROM first_of_repeated;

CREATE VIEW reports AS
SELECT
    id,
    substr(line, 60, 26)::TIMESTAMP AS received_at,
    members.generatedAt[:26]::TIMESTAMP AS generated_at,
    members.kind AS kind,
    members.server AS server,
    members.address AS address,
    members.report.clientId AS client,
    line->'$.report' AS report
FROM (
    SELECT id, line, json_transform(line, '{"generatedAt": "VARCHAR", "kind": "VARCHAR", "server": "VARCHAR",
        "address": "VARCHAR", "report": {"clientId": "VARCHAR"}}') AS members
    FROM once
);

-- One row for each sample: a latency, an error, or neither. `time` is the client's word, received_at is the server's.
CREATE VIEW samples AS
SELECT
    id,
    received_at,
    CASE WHEN sample.t BETWEEN 0 AND 7258118399999 THEN make_timestamp_ms(sample.t) END AS time,
    server,
    client,
    host,
    url,
    status,
    sample.latency AS latency_ms,
    sample.error AS error
FROM (
    -- Only what is wanted of a host: each of its samples would carry all the others.
    SELECT id, received_at, server, client, host.name AS host, host.url AS url, host.status AS status,
        unnest(host.history) AS sample
    FROM (
        SELECT id, substr(line, 60, 26)::TIMESTAMP AS received_at, members.server AS server,
            members.report.clientId AS client, unnest(members.report.hosts) AS host
        FROM (
            SELECT id, line, json_transform(line, '{"server": "VARCHAR", "report": {"clientId": "VARCHAR", "hosts": [
                {"name": "VARCHAR", "url": "VARCHAR", "status": "VARCHAR", "history": [
                    {"t": "BIGINT", "latency": "DOUBLE", "error": "VARCHAR"}]}]}}') AS members
            FROM once
            WHERE substr(line, 89, 15) = '"kind":"report"'
        )
    )
);

-- What browsers sent. With Network Error Logging only a share of the requests is reported, sampling_fraction: a report
-- stands for `weight` requests. The columns from `phase` on are NEL's, and NULL in reports of other kinds.
CREATE VIEW browser_reports AS
SELECT
    id,
    substr(line, 60, 26)::TIMESTAMP AS received_at,
    members.generatedAt[:26]::TIMESTAMP AS generated_at,
    members.server AS server,
    members.kind AS kind,
    members.report.url AS url,
    regexp_extract(members.report.url, '^[a-zA-Z][a-zA-Z0-9+.-]*://([^/?#]*)', 1) AS site,
    members.report.user_agent AS user_agent,
    members.report.body.phase AS phase,
    members.report.body.type AS type,
    members.report.body.status_code AS status_code,
    members.report.body.server_ip AS server_ip,
    members.report.body.protocol AS protocol,
    members.report.body.elapsed_time AS elapsed_ms,
    members.report.body.sampling_fraction AS sampling_fraction,
    CASE WHEN members.report.body.sampling_fraction > 0 AND members.report.body.sampling_fraction <= 1
        THEN 1 / members.report.body.sampling_fraction ELSE 1 END AS weight,
    line->'$.report' AS report
FROM (
    SELECT id, line, json_transform(line, '{"generatedAt": "VARCHAR", "kind": "VARCHAR", "server": "VARCHAR",
        "report": {"url": "VARCHAR", "user_agent": "VARCHAR", "body": {"phase": "VARCHAR", "type": "VARCHAR",
            "status_code": "BIGINT", "server_ip": "VARCHAR", "protocol": "VARCHAR", "elapsed_time": "DOUBLE",
            "sampling_fraction": "DOUBLE"}}}') AS members
    FROM once
    WHERE substr(line, 89, 15) <> '"kind":"report"'
);

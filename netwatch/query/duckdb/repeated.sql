-- A report that came twice under one Idempotency-Key, to two hosts or too long after, has the same id: the line that
-- was received first is the one that counts. As a rule there are few of these, so they are looked for beforehand.
INSERT INTO repeated
SELECT id::UUID AS id FROM lines GROUP BY ALL HAVING count(*) > 1;

INSERT INTO first_of_repeated
SELECT id, line
FROM lines
WHERE id::UUID IN (SELECT id FROM repeated)
QUALIFY row_number() OVER (PARTITION BY id ORDER BY substr(line, 60, 27), line) = 1;

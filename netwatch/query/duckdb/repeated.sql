-- A report that came twice under one Idempotency-Key, to two hosts or too long after, has the same id: the line that
-- was received first is the one that counts. As a rule there are few of these, so they are looked for beforehand. Only
-- what can be spilled holds a whole line here: neither a sort nor an aggregate's state does.
INSERT INTO repeated
SELECT id::UUID AS id FROM lines GROUP BY ALL HAVING count(*) > 1;

CREATE TABLE candidates AS
SELECT id, line, substr(line, 60, 27) || hash(line) AS mark FROM lines WHERE id::UUID IN (SELECT id FROM repeated);

INSERT INTO first_of_repeated
WITH first AS (SELECT id, min(mark) AS mark FROM candidates GROUP BY id)
SELECT DISTINCT id, line FROM candidates WHERE (id, mark) IN (SELECT (id, mark) FROM first);

DROP TABLE candidates;

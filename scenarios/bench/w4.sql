-- Sessions of 50 000 users with a 30-minute gap.
CREATE TABLE rows_in (
  user_id STRING,
  ts BIGINT,
  page STRING,
  t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/w4/pq',
  'format' = 'parquet'
);

CREATE TABLE result (
  user_id STRING,
  s BIGINT,
  e BIGINT,
  n BIGINT
) WITH ('connector' = 'filesystem', 'path' = '${OUT}', 'format' = 'parquet');

INSERT INTO result
SELECT user_id, MIN(ts) AS s, MAX(ts) AS e, COUNT(*) AS n
FROM rows_in
GROUP BY user_id, SESSION(t, INTERVAL '30' MINUTE);

-- One-minute counts, errors and error rate of 12 regions.
CREATE TABLE rows_in (
  region STRING,
  ts BIGINT,
  status INT,
  latency_ms INT,
  t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/w3/pq',
  'format' = 'parquet'
);

CREATE TABLE result (
  region STRING,
  w TIMESTAMP_LTZ(3),
  n BIGINT,
  e BIGINT,
  rate DOUBLE
) WITH ('connector' = 'filesystem', 'path' = '${OUT}', 'format' = 'parquet');

INSERT INTO result
SELECT region,
       TUMBLE_START(t, INTERVAL '1' MINUTE) AS w,
       COUNT(*) AS n,
       COUNT(*) FILTER (WHERE status >= 500) AS e,
       AVG(CASE WHEN status >= 500 THEN 1.0E0 ELSE 0.0E0 END) AS rate
FROM rows_in
GROUP BY region, TUMBLE(t, INTERVAL '1' MINUTE);

-- As w1, from JSON lines.
CREATE TABLE rows_in (
  sensor_id STRING,
  ts BIGINT,
  temperature DOUBLE,
  humidity DOUBLE,
  t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/w1/json',
  'format' = 'json'
);

CREATE TABLE result (
  sensor_id STRING,
  w TIMESTAMP_LTZ(3),
  a DOUBLE,
  mx DOUBLE,
  mn DOUBLE,
  n BIGINT,
  h DOUBLE
) WITH ('connector' = 'filesystem', 'path' = '${OUT}', 'format' = 'parquet');

INSERT INTO result
SELECT sensor_id,
       TUMBLE_START(t, INTERVAL '5' MINUTE) AS w,
       AVG(temperature) AS a, MAX(temperature) AS mx, MIN(temperature) AS mn, COUNT(*) AS n,
       AVG(humidity) AS h
FROM rows_in
GROUP BY sensor_id, TUMBLE(t, INTERVAL '5' MINUTE);

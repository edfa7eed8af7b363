-- The 15-second average of 100 000 meters: what hop.sql is measured against.
CREATE TABLE rows_in (
  meter_id STRING,
  ts BIGINT,
  kwh DOUBLE,
  connected BOOLEAN,
  t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/w2/pq',
  'format' = 'parquet'
);

CREATE TABLE result (
  meter_id STRING,
  w TIMESTAMP_LTZ(3),
  a DOUBLE
) WITH ('connector' = 'blackhole');

INSERT INTO result
SELECT meter_id, TUMBLE_START(t, INTERVAL '15' SECOND) AS w, AVG(kwh) AS a
FROM rows_in
GROUP BY meter_id, TUMBLE(t, INTERVAL '15' SECOND);

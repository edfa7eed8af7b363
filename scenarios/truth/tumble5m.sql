-- Five-minute statistics by meter; late and undecodable rows have tables of their own.
${INCLUDE readings}

CREATE TABLE tumble5m (
  meter_id STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  `count` BIGINT,
  sum_kwh DOUBLE,
  avg_kwh DOUBLE,
  min_kwh DOUBLE,
  max_kwh DOUBLE
) WITH (${SINK tumble5m});

CREATE TABLE late (
  `split` STRING,
  `offset` BIGINT,
  ts TIMESTAMP_LTZ(3),
  mark TIMESTAMP_LTZ(3),
  late_reason STRING
) WITH (${SINK late});

INSERT INTO tumble5m
SELECT meter_id,
       TUMBLE_START(ts, INTERVAL '5' MINUTE) AS window_start,
       TUMBLE_END(ts, INTERVAL '5' MINUTE) AS window_end,
       COUNT(*) AS `count`,
       SUM(kwh) AS sum_kwh, AVG(kwh) AS avg_kwh, MIN(kwh) AS min_kwh, MAX(kwh) AS max_kwh
FROM readings
GROUP BY meter_id, TUMBLE(ts, INTERVAL '5' MINUTE)
ON LATE INTO late;

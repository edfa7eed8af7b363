-- One-minute statistics by region, where the region is that of the customer at the reading's time.
${INCLUDE readings}
${INCLUDE customers}

CREATE TABLE region1m (
  region STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  `count` BIGINT,
  sum_kwh DOUBLE,
  avg_kwh DOUBLE,
  min_kwh DOUBLE,
  max_kwh DOUBLE
) WITH (${SINK region1m});

CREATE TABLE late_region1m (
  `split` STRING,
  `offset` BIGINT,
  ts TIMESTAMP_LTZ(3),
  mark TIMESTAMP_LTZ(3),
  late_reason STRING
) WITH (${SINK late_region1m});

INSERT INTO region1m
SELECT c.region,
       TUMBLE_START(r.ts, INTERVAL '1' MINUTE) AS window_start,
       TUMBLE_END(r.ts, INTERVAL '1' MINUTE) AS window_end,
       COUNT(*) AS `count`,
       SUM(r.kwh) AS sum_kwh, AVG(r.kwh) AS avg_kwh, MIN(r.kwh) AS min_kwh, MAX(r.kwh) AS max_kwh
FROM readings AS r
JOIN customers FOR SYSTEM_TIME AS OF r.ts AS c ON r.meter_id = c.meter_id
GROUP BY c.region, TUMBLE(r.ts, INTERVAL '1' MINUTE)
ON LATE INTO late_region1m;

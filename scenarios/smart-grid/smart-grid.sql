-- Theft of electricity, told from disconnected homes, holidays and new meters.
-- ${MQTT} is a broker's address, ${DATA} the folder of the reference data, ${OUT} that of the results.

-- What meters send: at homes, and at the substations that feed them.
CREATE TABLE readings (
  meter_id STRING,
  ts TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  voltage DOUBLE,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'mqtt',
  'url' = 'mqtt://${MQTT}',
  'topic' = 'grid/north/#;grid/midlands/#;grid/east/#;grid/south/#',
  'qos' = '1',
  'journal.path' = '${OUT}/journal',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'json.fail-on-missing-field' = 'true',
  'dead-letter.table' = 'bad_readings'
);

CREATE TABLE bad_readings (
  payload STRING,
  source STRING,
  `split` STRING,
  `offset` BIGINT,
  reason STRING
) WITH ('connector' = 'filesystem', 'path' = '${OUT}/bad_readings', 'format' = 'json');

-- Who is behind a meter, with a version for each change. Substations have no customer.
CREATE TABLE customers (
  meter_id STRING,
  valid_from TIMESTAMP_LTZ(3),
  customer_id STRING,
  address STRING,
  feeder_id STRING,
  region STRING,
  lat DOUBLE,
  lon DOUBLE,
  account_status STRING,
  meter_connected BOOLEAN,
  is_substation BOOLEAN,
  WATERMARK FOR valid_from AS valid_from,
  PRIMARY KEY (meter_id) NOT ENFORCED
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/customers.jsonl',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
);

-- What the cable of a feeder loses, and how many of its homes are connected.
CREATE TABLE feeders (
  feeder_id STRING,
  valid_from TIMESTAMP_LTZ(3),
  homes INT,
  loss_linear DOUBLE,
  loss_square DOUBLE,
  WATERMARK FOR valid_from AS valid_from,
  PRIMARY KEY (feeder_id) NOT ENFORCED
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/feeders.jsonl',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
);

-- The long baseline: what a meter shows at this hour of a working day, on average and at least. A
-- version an hour; frozen, so that no theft can creep into it. New meters have none.
CREATE TABLE usual_hours (
  meter_id STRING,
  valid_from TIMESTAMP_LTZ(3),
  usual_kwh DOUBLE,
  low_kwh DOUBLE,
  WATERMARK FOR valid_from AS valid_from,
  PRIMARY KEY (meter_id) NOT ENFORCED
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/usual_hours.jsonl',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
);

CREATE VIEW enriched AS
SELECT r.meter_id, r.ts, r.kwh, c.feeder_id, c.region, c.meter_connected, c.is_substation
FROM readings AS r
JOIN customers FOR SYSTEM_TIME AS OF r.ts AS c ON r.meter_id = c.meter_id;

-- 1. Use by meter, every five minutes.
CREATE TABLE usage_5m (
  meter_id STRING,
  window_start TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  highest_kwh DOUBLE,
  readings BIGINT
) WITH (
  'connector' = 'filesystem', 'path' = '${OUT}/usage_5m', 'format' = 'parquet',
  'sink.rolling-policy.rollover-interval' = '15 s'
);

CREATE TABLE late_readings (
  meter_id STRING,
  ts TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  mark TIMESTAMP_LTZ(3),
  late_reason STRING
) WITH (
  'connector' = 'filesystem', 'path' = '${OUT}/late_readings', 'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
);

-- 2. Load by region, every minute.
CREATE TABLE region_1m (
  region STRING,
  window_start TIMESTAMP_LTZ(3),
  load_kw DOUBLE,
  highest_kwh DOUBLE,
  readings BIGINT
) WITH (
  'connector' = 'filesystem', 'path' = '${OUT}/region_1m', 'format' = 'parquet',
  'sink.rolling-policy.rollover-interval' = '15 s'
);

-- 3. The literal rule: a reading below half of the meter's own last hour, while it is connected.
CREATE VIEW last_hour AS
SELECT meter_id,
       HOP_END(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR) AS window_end,
       AVG(kwh) AS baseline_kwh
FROM readings
GROUP BY meter_id, HOP(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR);

CREATE TABLE literal_flags (
  meter_id STRING,
  ts TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  baseline_kwh DOUBLE,
  ratio DOUBLE,
  window_end TIMESTAMP_LTZ(3)
) WITH (
  'connector' = 'filesystem', 'path' = '${OUT}/literal_flags', 'format' = 'parquet',
  'sink.rolling-policy.rollover-interval' = '15 s'
);

-- 4. The hardened rule. A meter is a suspect when, over the last half hour,
--    * six or more of its readings were below 0.9 of the lowest at this hour in the baseline,
--    * its lowest reading fell to 0.6 or less of what it was within the hour before (holidays come
--      gradually, thieves at once), and
--    * its feeder delivered more than its homes show: 150 W and 0.3 of what the meter shows, at least,
--      while the feeder's homes report.
CREATE VIEW half_hour AS
SELECT r.meter_id,
       HOP_START(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE) AS window_start,
       HOP_END(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE) AS window_end,
       HOP_ROWTIME(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE) AS window_time,
       AVG(r.kwh) AS avg_kwh,
       MIN(r.kwh) AS lowest_kwh,
       AVG(u.usual_kwh) AS usual_kwh,
       MIN(u.low_kwh) AS low_kwh,
       COUNT(*) FILTER (WHERE r.kwh < 0.9 * u.low_kwh) AS low_readings,
       COUNT(*) AS readings
FROM enriched AS r
JOIN usual_hours FOR SYSTEM_TIME AS OF r.ts AS u ON r.meter_id = u.meter_id
WHERE r.meter_connected
GROUP BY r.meter_id, HOP(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE);

-- A window over windows. Of the very first half hours, those with a few readings only say nothing.
CREATE VIEW hour_before AS
SELECT meter_id,
       HOP_END(window_time, INTERVAL '1' MINUTE, INTERVAL '1' HOUR) AS window_end,
       MAX(lowest_kwh) AS highest_low_kwh
FROM half_hour
WHERE readings >= 20
GROUP BY meter_id, HOP(window_time, INTERVAL '1' MINUTE, INTERVAL '1' HOUR);

-- Per interval of 15 s: what the substation delivered, less the cable's losses, less what homes show.
CREATE VIEW balance AS
SELECT r.feeder_id,
       HOP_END(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE) AS window_end,
       SUM(CASE WHEN r.is_substation
                THEN r.kwh * (1 - f.loss_linear - f.loss_square * r.kwh)
                ELSE -r.kwh END)
         / COUNT(*) FILTER (WHERE r.is_substation) AS missing_kwh,
       AVG(f.homes) - COUNT(*) FILTER (WHERE NOT r.is_substation AND r.meter_connected)
         / CAST(COUNT(*) FILTER (WHERE r.is_substation) AS DOUBLE) AS silent_homes
FROM enriched AS r
JOIN feeders FOR SYSTEM_TIME AS OF r.ts AS f ON r.feeder_id = f.feeder_id
GROUP BY r.feeder_id, HOP(r.ts, INTERVAL '1' MINUTE, INTERVAL '30' MINUTE)
HAVING COUNT(*) FILTER (WHERE r.is_substation) > 0;

CREATE TABLE suspects (
  meter_id STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  reading_kwh DOUBLE,
  baseline_kwh DOUBLE,
  ratio DOUBLE,
  low_readings BIGINT,
  avg_kwh DOUBLE,
  usual_kwh DOUBLE,
  missing_w DOUBLE,
  severity STRING,
  customer_id STRING,
  address STRING,
  account_status STRING,
  feeder_id STRING,
  region STRING,
  lat DOUBLE,
  lon DOUBLE
) WITH (
  'connector' = 'filesystem', 'path' = '${OUT}/suspects', 'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'sink.rolling-policy.rollover-interval' = '1 s'
);

EXECUTE STATEMENT SET
BEGIN
  INSERT INTO usage_5m
  SELECT meter_id,
         TUMBLE_START(ts, INTERVAL '5' MINUTE) AS window_start,
         SUM(kwh) AS kwh, MAX(kwh) AS highest_kwh, COUNT(*) AS readings
  FROM readings
  GROUP BY meter_id, TUMBLE(ts, INTERVAL '5' MINUTE)
  ON LATE INTO late_readings;

  INSERT INTO region_1m
  SELECT region,
         TUMBLE_START(ts, INTERVAL '1' MINUTE) AS window_start,
         SUM(kwh) * 60 AS load_kw, MAX(kwh) AS highest_kwh, COUNT(*) AS readings
  FROM enriched
  WHERE NOT is_substation
  GROUP BY region, TUMBLE(ts, INTERVAL '1' MINUTE);

  INSERT INTO literal_flags
  SELECT r.meter_id, r.ts, r.kwh, b.baseline_kwh, r.kwh / b.baseline_kwh AS ratio, b.window_end
  FROM enriched AS r
  JOIN last_hour FOR SYSTEM_TIME AS OF r.ts AS b ON r.meter_id = b.meter_id
  WHERE r.meter_connected AND NOT r.is_substation
    AND b.baseline_kwh > 0 AND r.kwh / b.baseline_kwh < 0.5;

  INSERT INTO suspects
  SELECT w.meter_id, w.window_start, w.window_end,
         w.lowest_kwh AS reading_kwh, w.low_kwh AS baseline_kwh,
         w.lowest_kwh / w.low_kwh AS ratio,
         w.low_readings, w.avg_kwh, w.usual_kwh, b.missing_kwh * 240000 AS missing_w,
         CASE WHEN w.lowest_kwh < 0.3 * w.low_kwh THEN 'high' ELSE 'medium' END AS severity,
         c.customer_id, c.address, c.account_status, c.feeder_id, c.region, c.lat, c.lon
  FROM half_hour AS w
  JOIN customers FOR SYSTEM_TIME AS OF w.window_time AS c ON w.meter_id = c.meter_id
  JOIN hour_before FOR SYSTEM_TIME AS OF w.window_time AS h ON w.meter_id = h.meter_id
  JOIN balance FOR SYSTEM_TIME AS OF w.window_time AS b ON c.feeder_id = b.feeder_id
  WHERE c.meter_connected
    AND w.low_readings >= 6
    AND w.lowest_kwh <= 0.6 * h.highest_low_kwh
    AND b.missing_kwh * 240000 >= 150
    AND b.missing_kwh >= 0.3 * w.avg_kwh
    AND b.silent_homes < 0.3;
END;

-- The literal rule: less than half of the meter's own hourly average, while it is connected.
${INCLUDE readings}
${INCLUDE customers}

CREATE VIEW baseline AS
SELECT meter_id,
       HOP_END(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR) AS window_end,
       AVG(kwh) AS baseline
FROM readings
GROUP BY meter_id, HOP(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR);

CREATE TABLE theft (
  meter_id STRING,
  ts TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  baseline DOUBLE,
  ratio DOUBLE
) WITH (${SINK theft});

CREATE TABLE late_theft (
  `split` STRING,
  `offset` BIGINT,
  ts TIMESTAMP_LTZ(3),
  mark TIMESTAMP_LTZ(3),
  late_reason STRING
) WITH (${SINK late_theft});

INSERT INTO theft
SELECT r.meter_id, r.ts, r.kwh, b.baseline, r.kwh / b.baseline AS ratio
FROM readings AS r
JOIN baseline FOR SYSTEM_TIME AS OF r.ts AS b ON r.meter_id = b.meter_id
JOIN customers FOR SYSTEM_TIME AS OF r.ts AS c ON r.meter_id = c.meter_id
WHERE c.meter_connected AND b.baseline > 0 AND r.kwh / b.baseline < 0.5
ON LATE INTO late_theft;

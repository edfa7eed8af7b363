-- Sessions of each meter: readings no more than ten minutes apart.
${INCLUDE readings}

CREATE TABLE sessions (
  meter_id STRING,
  `start` TIMESTAMP_LTZ(3),
  `end` TIMESTAMP_LTZ(3),
  `count` BIGINT,
  sum_kwh DOUBLE
) WITH (${SINK sessions});

CREATE TABLE late_sessions (
  `split` STRING,
  `offset` BIGINT,
  ts TIMESTAMP_LTZ(3),
  mark TIMESTAMP_LTZ(3),
  late_reason STRING
) WITH (${SINK late_sessions});

INSERT INTO sessions
SELECT meter_id,
       SESSION_START(ts, INTERVAL '10' MINUTE) AS `start`,
       SESSION_END(ts, INTERVAL '10' MINUTE) AS `end`,
       COUNT(*) AS `count`,
       SUM(kwh) AS sum_kwh
FROM readings
GROUP BY meter_id, SESSION(ts, INTERVAL '10' MINUTE)
ON LATE INTO late_sessions;

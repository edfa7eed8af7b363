-- Five-minute statistics by meter, of each reading once.
${INCLUDE readings}

CREATE TABLE tumble5m_dedup (
  meter_id STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  `count` BIGINT,
  sum_kwh DOUBLE,
  avg_kwh DOUBLE,
  min_kwh DOUBLE,
  max_kwh DOUBLE
) WITH (${SINK tumble5m_dedup});

INSERT INTO tumble5m_dedup
SELECT meter_id,
       TUMBLE_START(ts, INTERVAL '5' MINUTE) AS window_start,
       TUMBLE_END(ts, INTERVAL '5' MINUTE) AS window_end,
       COUNT(*) AS `count`,
       SUM(kwh) AS sum_kwh, AVG(kwh) AS avg_kwh, MIN(kwh) AS min_kwh, MAX(kwh) AS max_kwh
FROM readings
GROUP BY meter_id, TUMBLE(ts, INTERVAL '5' MINUTE);

-- One-minute statistics by region as of each reading's time, of each reading once.
${INCLUDE readings}
${INCLUDE customers}

CREATE TABLE region1m_dedup (
  region STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  `count` BIGINT,
  sum_kwh DOUBLE,
  avg_kwh DOUBLE,
  min_kwh DOUBLE,
  max_kwh DOUBLE
) WITH (${SINK region1m_dedup});

INSERT INTO region1m_dedup
SELECT c.region,
       TUMBLE_START(r.ts, INTERVAL '1' MINUTE) AS window_start,
       TUMBLE_END(r.ts, INTERVAL '1' MINUTE) AS window_end,
       COUNT(*) AS `count`,
       SUM(r.kwh) AS sum_kwh, AVG(r.kwh) AS avg_kwh, MIN(r.kwh) AS min_kwh, MAX(r.kwh) AS max_kwh
FROM readings AS r
JOIN customers FOR SYSTEM_TIME AS OF r.ts AS c ON r.meter_id = c.meter_id
GROUP BY c.region, TUMBLE(r.ts, INTERVAL '1' MINUTE);

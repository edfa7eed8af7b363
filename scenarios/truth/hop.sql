-- The hourly average of each meter, every 15 seconds.
${INCLUDE readings}

CREATE TABLE hop (
  meter_id STRING,
  window_start TIMESTAMP_LTZ(3),
  window_end TIMESTAMP_LTZ(3),
  avg_kwh DOUBLE
) WITH (${SINK hop});

INSERT INTO hop
SELECT meter_id,
       HOP_START(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR) AS window_start,
       HOP_END(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR) AS window_end,
       AVG(kwh) AS avg_kwh
FROM readings
GROUP BY meter_id, HOP(ts, INTERVAL '15' SECOND, INTERVAL '1' HOUR);

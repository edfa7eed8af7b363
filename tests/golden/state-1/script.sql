CREATE TABLE readings (
  seq BIGINT, meter STRING, ts BIGINT, kwh DOUBLE, t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND,
  PRIMARY KEY (seq) NOT ENFORCED
) WITH ('connector' = 'filesystem', 'path' = 'in/readings', 'format' = 'json',
        'dedup.within' = '2 min');
CREATE TABLE meters (
  meter STRING, place STRING, since BIGINT, v AS TO_TIMESTAMP_LTZ(since, 3),
  WATERMARK FOR v AS v, PRIMARY KEY (meter) NOT ENFORCED
) WITH ('connector' = 'filesystem', 'path' = 'in/meters', 'format' = 'json');
CREATE TABLE usage (meter STRING, w TIMESTAMP_LTZ(3), n BIGINT, total DOUBLE)
  WITH ('connector' = 'filesystem', 'path' = 'out/usage', 'format' = 'json',
        'sink.rolling-policy.file-size' = '200 b');
CREATE TABLE visits (place STRING, w TIMESTAMP_LTZ(3), n BIGINT, most DOUBLE)
  WITH ('connector' = 'filesystem', 'path' = 'out/visits', 'format' = 'json');
EXECUTE STATEMENT SET BEGIN
INSERT INTO usage
SELECT meter, TUMBLE_START(t, INTERVAL '1' MINUTE), COUNT(*), SUM(kwh)
FROM readings GROUP BY meter, TUMBLE(t, INTERVAL '1' MINUTE);
INSERT INTO visits
SELECT m.place, SESSION_START(r.t, INTERVAL '20' SECOND), COUNT(*), MAX(r.kwh)
FROM readings AS r JOIN meters FOR SYSTEM_TIME AS OF r.t AS m ON r.meter = m.meter
GROUP BY m.place, SESSION(r.t, INTERVAL '20' SECOND);
END;

-- Readings from Kafka; record time is arrival. No partition ever goes idle in the truth.
CREATE TABLE readings (
  meter_id STRING,
  ts TIMESTAMP_LTZ(3),
  kwh DOUBLE,
  voltage DOUBLE,
  `current` DOUBLE,
  seq INT,
  device ROW<fw STRING, rssi INT>,
  `split` STRING METADATA,
  `offset` BIGINT METADATA,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND${KEY}
) WITH (
  'connector' = 'kafka',
  'topic' = '${TOPIC}',
  'properties.bootstrap.servers' = '${KAFKA}',
  'scan.startup.mode' = 'earliest-offset',
  'scan.watermark.idle-timeout' = '1 h',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'dead-letter.table' = 'bad'${WITHIN}
);

CREATE TABLE bad (
  `split` STRING,
  `offset` BIGINT,
  reason STRING
) WITH (${SINK bad});


-- Readings from MQTT with QoS 1, a slot for each topic filter. No slot ever goes idle in the truth.
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
  'connector' = 'mqtt',
  'url' = 'mqtt://${MQTT}',
  'topic' = '${TOPIC}/0/#;${TOPIC}/1/#;${TOPIC}/2/#;${TOPIC}/3/#',
  'client-id' = '${TOPIC}',
  'qos' = '1',
  'journal.path' = '${OUT}/journal',
  'scan.watermark.idle-timeout' = '1 h',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'dead-letter.table' = 'bad'${WITHIN}${COPIES}
);

CREATE TABLE bad (
  `split` STRING,
  `offset` BIGINT,
  reason STRING
) WITH (${SINK bad});


-- An archive with split, offset and arrival as columns: replayed by them, with future guard.
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
  'connector' = 'filesystem',
  'path' = '${DATA}/readings.parquet',
  'format' = 'parquet',
  'split.by' = 'columns',
  'split.column' = 'split',
  'offset.column' = 'offset',
  'arrival.column' = 'arrival'${WITHIN}
);

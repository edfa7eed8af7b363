-- The customers, versioned by valid_from.
CREATE TABLE customers (
  meter_id STRING,
  valid_from TIMESTAMP_LTZ(3),
  customer_id STRING,
  region STRING,
  meter_connected BOOLEAN,
  WATERMARK FOR valid_from AS valid_from,
  PRIMARY KEY (meter_id) NOT ENFORCED
) WITH (
  'connector' = 'filesystem',
  'path' = '${DATA}/customers.parquet',
  'format' = 'parquet'
);

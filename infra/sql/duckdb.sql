-- Written by `make docs` from id2core/store/schemas.py and infra/sql/views/. Do not edit it by hand.
-- DuckDB 2 or later. Name the place first, a --out of `id2 nightly` or `id2 scan`:
--   SET VARIABLE place = 'results';
--   .read infra/sql/duckdb.sql
-- A table that has no file yet is empty. Numbers of pictures, such as latents, are left out.
CREATE SCHEMA IF NOT EXISTS id2;
CREATE OR REPLACE MACRO unix_seconds(moment) AS CAST(epoch(moment) AS BIGINT);

CREATE OR REPLACE VIEW id2.matches AS
SELECT
  query_id,
  query_uri,
  rank,
  reference_id,
  reference_uri,
  score,
  background,
  normalized_score,
  verdict,
  false_positive_rate,
  encoder_id,
  transform_id,
  index_id,
  calibration_id,
  run_id,
  scanned_at,
  verdict_reason,
  query_generation,
  view,
  channel,
  floor,
  information,
  c2pa_state,
  generator,
  digital_source_type,
  detail,
  scan_date
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS query_id,
  CAST(NULL AS VARCHAR) AS query_uri,
  CAST(NULL AS INTEGER) AS rank,
  CAST(NULL AS VARCHAR) AS reference_id,
  CAST(NULL AS VARCHAR) AS reference_uri,
  CAST(NULL AS FLOAT) AS score,
  CAST(NULL AS FLOAT) AS background,
  CAST(NULL AS FLOAT) AS normalized_score,
  CAST(NULL AS VARCHAR) AS verdict,
  CAST(NULL AS FLOAT) AS false_positive_rate,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS index_id,
  CAST(NULL AS VARCHAR) AS calibration_id,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS scanned_at,
  CAST(NULL AS VARCHAR) AS verdict_reason,
  CAST(NULL AS VARCHAR) AS query_generation,
  CAST(NULL AS VARCHAR) AS view,
  CAST(NULL AS VARCHAR) AS channel,
  CAST(NULL AS FLOAT) AS floor,
  CAST(NULL AS FLOAT) AS information,
  CAST(NULL AS VARCHAR) AS c2pa_state,
  CAST(NULL AS VARCHAR) AS generator,
  CAST(NULL AS VARCHAR) AS digital_source_type,
  CAST(NULL AS FLOAT) AS detail,
  CAST(NULL AS DATE) AS scan_date
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/matches/**/*.parquet',
    hive_partitioning = true, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.verdicts AS
SELECT
  query_uri,
  query_generation,
  reference_id,
  encoder_id,
  transform_id,
  channel,
  verdict,
  verdict_reason,
  false_positive_rate,
  calibration_id,
  judged_at,
  run_id
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS query_uri,
  CAST(NULL AS VARCHAR) AS query_generation,
  CAST(NULL AS VARCHAR) AS reference_id,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS channel,
  CAST(NULL AS VARCHAR) AS verdict,
  CAST(NULL AS VARCHAR) AS verdict_reason,
  CAST(NULL AS FLOAT) AS false_positive_rate,
  CAST(NULL AS VARCHAR) AS calibration_id,
  CAST(NULL AS TIMESTAMPTZ) AS judged_at,
  CAST(NULL AS VARCHAR) AS run_id
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/verdicts/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.query_embeddings AS
SELECT
  image_id,
  uri,
  generation,
  bytes,
  width,
  height,
  format,
  encoder_id,
  transform_id,
  preprocess_id,
  run_id,
  embedded_at,
  information,
  c2pa_state,
  generator,
  digital_source_type,
  finder
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS BIGINT) AS bytes,
  CAST(NULL AS INTEGER) AS width,
  CAST(NULL AS INTEGER) AS height,
  CAST(NULL AS VARCHAR) AS format,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS embedded_at,
  CAST(NULL AS FLOAT) AS information,
  CAST(NULL AS VARCHAR) AS c2pa_state,
  CAST(NULL AS VARCHAR) AS generator,
  CAST(NULL AS VARCHAR) AS digital_source_type,
  CAST(NULL AS VARCHAR) AS finder
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/queries/embeddings/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.query_rejects AS
SELECT
  uri,
  generation,
  reason,
  detail,
  run_id
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS VARCHAR) AS reason,
  CAST(NULL AS VARCHAR) AS detail,
  CAST(NULL AS VARCHAR) AS run_id
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/queries/rejects/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.query_removals AS
SELECT
  image_id,
  uri,
  generation,
  segment,
  reason,
  removed_in,
  run_id,
  removed_at
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS VARCHAR) AS segment,
  CAST(NULL AS VARCHAR) AS reason,
  CAST(NULL AS BIGINT) AS removed_in,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS removed_at
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/queries/removals/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.query_backgrounds AS
SELECT
  image_id,
  uri,
  generation,
  background,
  background_id,
  k,
  encoder_id,
  transform_id,
  preprocess_id,
  run_id
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS FLOAT) AS background,
  CAST(NULL AS VARCHAR) AS background_id,
  CAST(NULL AS INTEGER) AS k,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS VARCHAR) AS run_id
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/queries/backgrounds/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.reference_embeddings AS
SELECT
  image_id,
  uri,
  generation,
  bytes,
  width,
  height,
  format,
  encoder_id,
  transform_id,
  preprocess_id,
  run_id,
  embedded_at,
  information,
  c2pa_state,
  generator,
  digital_source_type,
  finder
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS BIGINT) AS bytes,
  CAST(NULL AS INTEGER) AS width,
  CAST(NULL AS INTEGER) AS height,
  CAST(NULL AS VARCHAR) AS format,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS embedded_at,
  CAST(NULL AS FLOAT) AS information,
  CAST(NULL AS VARCHAR) AS c2pa_state,
  CAST(NULL AS VARCHAR) AS generator,
  CAST(NULL AS VARCHAR) AS digital_source_type,
  CAST(NULL AS VARCHAR) AS finder
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/reference/embeddings/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.reference_rejects AS
SELECT
  uri,
  generation,
  reason,
  detail,
  run_id
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS VARCHAR) AS reason,
  CAST(NULL AS VARCHAR) AS detail,
  CAST(NULL AS VARCHAR) AS run_id
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/reference/rejects/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.reference_removals AS
SELECT
  image_id,
  uri,
  generation,
  segment,
  reason,
  removed_in,
  run_id,
  removed_at
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS VARCHAR) AS segment,
  CAST(NULL AS VARCHAR) AS reason,
  CAST(NULL AS BIGINT) AS removed_in,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS removed_at
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/reference/removals/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.channel_query_embeddings AS
SELECT
  image_id,
  uri,
  generation,
  bytes,
  width,
  height,
  format,
  encoder_id,
  transform_id,
  preprocess_id,
  run_id,
  embedded_at,
  information,
  c2pa_state,
  generator,
  digital_source_type,
  finder
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS BIGINT) AS bytes,
  CAST(NULL AS INTEGER) AS width,
  CAST(NULL AS INTEGER) AS height,
  CAST(NULL AS VARCHAR) AS format,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS embedded_at,
  CAST(NULL AS FLOAT) AS information,
  CAST(NULL AS VARCHAR) AS c2pa_state,
  CAST(NULL AS VARCHAR) AS generator,
  CAST(NULL AS VARCHAR) AS digital_source_type,
  CAST(NULL AS VARCHAR) AS finder
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/channels/*/queries/embeddings/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.channel_reference_embeddings AS
SELECT
  image_id,
  uri,
  generation,
  bytes,
  width,
  height,
  format,
  encoder_id,
  transform_id,
  preprocess_id,
  run_id,
  embedded_at,
  information,
  c2pa_state,
  generator,
  digital_source_type,
  finder
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uri,
  CAST(NULL AS VARCHAR) AS generation,
  CAST(NULL AS BIGINT) AS bytes,
  CAST(NULL AS INTEGER) AS width,
  CAST(NULL AS INTEGER) AS height,
  CAST(NULL AS VARCHAR) AS format,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS embedded_at,
  CAST(NULL AS FLOAT) AS information,
  CAST(NULL AS VARCHAR) AS c2pa_state,
  CAST(NULL AS VARCHAR) AS generator,
  CAST(NULL AS VARCHAR) AS digital_source_type,
  CAST(NULL AS VARCHAR) AS finder
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/channels/*/reference/embeddings/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.ledger AS
SELECT
  run_id,
  searched_at,
  encoder_id,
  transform_id,
  preprocess_id,
  query_from,
  query_to,
  reference_from,
  reference_to,
  query_version,
  reference_version,
  pairs,
  index_id,
  top_k,
  floor,
  views
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS searched_at,
  CAST(NULL AS VARCHAR) AS encoder_id,
  CAST(NULL AS VARCHAR) AS transform_id,
  CAST(NULL AS VARCHAR) AS preprocess_id,
  CAST(NULL AS INTEGER) AS query_from,
  CAST(NULL AS INTEGER) AS query_to,
  CAST(NULL AS INTEGER) AS reference_from,
  CAST(NULL AS INTEGER) AS reference_to,
  CAST(NULL AS BIGINT) AS query_version,
  CAST(NULL AS BIGINT) AS reference_version,
  CAST(NULL AS BIGINT) AS pairs,
  CAST(NULL AS VARCHAR) AS index_id,
  CAST(NULL AS INTEGER) AS top_k,
  CAST(NULL AS FLOAT) AS floor,
  CAST(NULL AS VARCHAR) AS views
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/ledger/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.segments AS
SELECT
  corpus,
  segment,
  number,
  added_at,
  "rows"
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS corpus,
  CAST(NULL AS VARCHAR) AS segment,
  CAST(NULL AS INTEGER) AS number,
  CAST(NULL AS TIMESTAMPTZ) AS added_at,
  CAST(NULL AS BIGINT) AS "rows"
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/segments/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.takedowns AS
SELECT
  image_id,
  uris,
  reason,
  requested_at,
  run_id,
  reinstated_at
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS image_id,
  CAST(NULL AS VARCHAR) AS uris,
  CAST(NULL AS VARCHAR) AS reason,
  CAST(NULL AS TIMESTAMPTZ) AS requested_at,
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS TIMESTAMPTZ) AS reinstated_at
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/takedowns/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.runs AS
SELECT
  run_id,
  flow,
  config,
  listed,
  embedded,
  rejected,
  matches,
  translated,
  seconds,
  versions,
  status,
  started,
  ended,
  error,
  "references",
  queries,
  new_references,
  new_queries,
  match_pairs,
  review_pairs,
  first_searched,
  first_matched
FROM (
  SELECT
  CAST(NULL AS VARCHAR) AS run_id,
  CAST(NULL AS VARCHAR) AS flow,
  CAST(NULL AS VARCHAR) AS config,
  CAST(NULL AS BIGINT) AS listed,
  CAST(NULL AS BIGINT) AS embedded,
  CAST(NULL AS BIGINT) AS rejected,
  CAST(NULL AS BIGINT) AS matches,
  CAST(NULL AS BIGINT) AS translated,
  CAST(NULL AS VARCHAR) AS seconds,
  CAST(NULL AS VARCHAR) AS versions,
  CAST(NULL AS VARCHAR) AS status,
  CAST(NULL AS TIMESTAMPTZ) AS started,
  CAST(NULL AS TIMESTAMPTZ) AS ended,
  CAST(NULL AS VARCHAR) AS error,
  CAST(NULL AS BIGINT) AS "references",
  CAST(NULL AS BIGINT) AS queries,
  CAST(NULL AS BIGINT) AS new_references,
  CAST(NULL AS BIGINT) AS new_queries,
  CAST(NULL AS BIGINT) AS match_pairs,
  CAST(NULL AS BIGINT) AS review_pairs,
  CAST(NULL AS BIGINT) AS first_searched,
  CAST(NULL AS BIGINT) AS first_matched
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/runs/**/*.parquet',
    hive_partitioning = false, union_by_name = true, allow_empty = true
  )
) AS files;

CREATE OR REPLACE VIEW id2.judged AS
-- Every stored pair with the verdict that holds today: the newest of verdicts/, else the one in matches/.
-- judged_score is the score that verdicts are for. rank is the rank in the search that stored the pair.
WITH newest AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY query_uri, query_generation, reference_id, encoder_id, transform_id, channel
      ORDER BY judged_at DESC, run_id DESC
    ) AS age
  FROM id2.verdicts
)
SELECT
  m.scan_date,
  m.query_id,
  m.query_uri,
  m.query_generation,
  m.rank,
  m.reference_id,
  m.reference_uri,
  m.score,
  m.background,
  m.normalized_score,
  COALESCE(m.normalized_score, m.score) AS judged_score,
  CASE WHEN v.judged_at IS NULL THEN m.verdict ELSE v.verdict END AS verdict,
  CASE WHEN v.judged_at IS NULL THEN m.verdict_reason ELSE v.verdict_reason END AS verdict_reason,
  CASE WHEN v.judged_at IS NULL THEN m.false_positive_rate ELSE v.false_positive_rate END
    AS false_positive_rate,
  CASE WHEN v.judged_at IS NULL THEN m.calibration_id ELSE v.calibration_id END AS calibration_id,
  v.judged_at,
  m.encoder_id,
  m.transform_id,
  m.index_id,
  m.view,
  m.channel,
  m.floor,
  m.run_id,
  m.scanned_at,
  m.c2pa_state,
  m.generator,
  m.digital_source_type,
  m.detail
FROM id2.matches AS m
LEFT JOIN newest AS v
  ON v.age = 1
  AND v.query_uri = m.query_uri
  AND v.reference_id = m.reference_id
  AND v.encoder_id = m.encoder_id
  AND v.transform_id = m.transform_id
  AND COALESCE(v.query_generation, '') = COALESCE(m.query_generation, '')
  AND COALESCE(v.channel, 'latent') = COALESCE(m.channel, 'latent');

CREATE OR REPLACE VIEW id2.best_matches AS
-- Every stored pair, ranked among all pairs of its upload, whichever night stored them.
SELECT
  j.scan_date,
  j.query_id,
  j.query_uri,
  j.query_generation,
  ROW_NUMBER() OVER (
    PARTITION BY j.query_uri, j.query_generation, j.encoder_id, j.transform_id, j.channel
    ORDER BY j.judged_score DESC, j.score DESC, j.reference_id
  ) AS rank,
  j.reference_id,
  j.reference_uri,
  j.score,
  j.background,
  j.normalized_score,
  j.judged_score,
  j.verdict,
  j.verdict_reason,
  j.false_positive_rate,
  j.calibration_id,
  j.judged_at,
  j.encoder_id,
  j.transform_id,
  j.index_id,
  j.view,
  j.channel,
  j.floor,
  j.run_id,
  j.scanned_at,
  j.c2pa_state,
  j.generator,
  j.digital_source_type,
  j.detail
FROM id2.judged AS j;

CREATE OR REPLACE VIEW id2.current AS
-- The pairs of which both pictures stand in the corpora today, of every channel in its own corpora.
-- A rank would have to sort all pairs for every query, so there is none: order by judged_score.
-- reference_uri is the first of the picture's present places.
WITH uploads AS (
  SELECT DISTINCT uri, generation, image_id, encoder_id, transform_id
  FROM (
    SELECT uri, generation, image_id, encoder_id, transform_id FROM id2.query_embeddings
    UNION ALL
    SELECT uri, generation, image_id, encoder_id, transform_id FROM id2.channel_query_embeddings
  ) AS q
),
originals AS (
  SELECT image_id, encoder_id, transform_id, MIN(uri) AS uri
  FROM (
    SELECT uri, image_id, encoder_id, transform_id FROM id2.reference_embeddings
    UNION ALL
    SELECT uri, image_id, encoder_id, transform_id FROM id2.channel_reference_embeddings
  ) AS r
  GROUP BY image_id, encoder_id, transform_id
)
SELECT
  j.scan_date,
  j.query_id,
  j.query_uri,
  j.query_generation,
  j.reference_id,
  o.uri AS reference_uri,
  j.score,
  j.background,
  j.normalized_score,
  j.judged_score,
  j.verdict,
  j.verdict_reason,
  j.false_positive_rate,
  j.calibration_id,
  j.judged_at,
  j.encoder_id,
  j.transform_id,
  j.index_id,
  j.view,
  j.channel,
  j.floor,
  j.run_id,
  j.scanned_at,
  j.c2pa_state,
  j.generator,
  j.digital_source_type,
  j.detail
FROM id2.judged AS j
JOIN uploads AS u
  ON u.uri = j.query_uri
  AND u.image_id = j.query_id
  AND u.encoder_id = j.encoder_id
  AND u.transform_id = j.transform_id
  AND COALESCE(u.generation, '') = COALESCE(j.query_generation, u.generation, '')
JOIN originals AS o
  ON o.image_id = j.reference_id
  AND o.encoder_id = j.encoder_id
  AND o.transform_id = j.transform_id;

CREATE OR REPLACE VIEW id2.current_uploads AS
-- A row per upload of `current`: its verdict, the strongest of its best references in each channel.
-- Scores of channels are not comparable, and verdicts are. Of equal verdicts, that of the first channel holds.
WITH ranked AS (
  SELECT
    *,
    COALESCE(channel, 'latent') AS named,
    CASE verdict WHEN 'match' THEN 1 WHEN 'review' THEN 2 WHEN 'none' THEN 3 ELSE 4 END AS strength,
    ROW_NUMBER() OVER (
      PARTITION BY query_uri, query_generation, COALESCE(channel, 'latent')
      ORDER BY judged_score DESC, score DESC, reference_id
    ) AS place
  FROM id2.current
),
best AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY query_uri, query_generation
      ORDER BY strength, CASE WHEN named = 'latent' THEN 0 ELSE 1 END, named
    ) AS choice,
    COUNT(*) OVER (PARTITION BY query_uri, query_generation) AS channels,
    SUM(CASE WHEN verdict = 'match' THEN 1 ELSE 0 END) OVER (
      PARTITION BY query_uri, query_generation
    ) AS channels_matched
  FROM ranked
  WHERE place = 1
)
SELECT
  query_uri,
  query_generation,
  query_id,
  verdict,
  verdict_reason,
  false_positive_rate,
  calibration_id,
  named AS channel,
  reference_id,
  reference_uri,
  judged_score,
  view,
  CAST(channels AS BIGINT) AS channels,
  CAST(channels_matched AS BIGINT) AS channels_matched
FROM best
WHERE choice = 1;

CREATE OR REPLACE VIEW id2.daily_counts AS
-- A row per UTC date: uploads taken in, and the pairs that were stored.
-- Uploads come from the corpus and its removal log, because an upload without a pair is not in matches/.
-- Pairs whose verdict changed later are looked up by key, so that a day's counts read few columns.
WITH rejudged AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY query_uri, query_generation, reference_id, encoder_id, transform_id, channel
      ORDER BY judged_at DESC, run_id DESC
    ) AS age
  FROM id2.verdicts
),
flagged AS (
  SELECT m.scan_date, m.query_uri, m.query_generation, m.verdict
  FROM (SELECT * FROM id2.matches WHERE verdict IN ('match', 'review')) AS m
  LEFT JOIN rejudged AS v
    ON v.age = 1
    AND v.query_uri = m.query_uri
    AND v.reference_id = m.reference_id
    AND v.encoder_id = m.encoder_id
    AND v.transform_id = m.transform_id
    AND COALESCE(v.query_generation, '') = COALESCE(m.query_generation, '')
    AND COALESCE(v.channel, 'latent') = COALESCE(m.channel, 'latent')
  WHERE v.judged_at IS NULL
  UNION ALL
  SELECT m.scan_date, m.query_uri, m.query_generation, v.verdict
  FROM rejudged AS v
  JOIN id2.matches AS m
    ON v.query_uri = m.query_uri
    AND v.reference_id = m.reference_id
    AND v.encoder_id = m.encoder_id
    AND v.transform_id = m.transform_id
    AND COALESCE(v.query_generation, '') = COALESCE(m.query_generation, '')
    AND COALESCE(v.channel, 'latent') = COALESCE(m.channel, 'latent')
  WHERE v.age = 1 AND v.verdict IN ('match', 'review')
),
flagged_uploads AS (
  SELECT
    scan_date,
    SUM(CASE WHEN verdict = 'match' THEN 1 ELSE 0 END) AS matches,
    SUM(CASE WHEN verdict = 'review' THEN 1 ELSE 0 END) AS reviews
  FROM flagged
  GROUP BY scan_date, query_uri, query_generation
),
-- One row per kind of count and date; the last step adds them up.
counts AS (
  SELECT scan_date, 0 AS uploads, 0 AS rejects, 0 AS uploads_with_pairs, COUNT(*) AS pairs,
    0 AS matches, 0 AS reviews, 0 AS uploads_matched, 0 AS uploads_in_review
  FROM id2.matches
  GROUP BY scan_date
  UNION ALL
  SELECT scan_date, 0, 0, COUNT(*), 0, 0, 0, 0, 0
  FROM (
    -- Of an upload, a search stores the best pair first, with rank 1. A takedown may have removed that row.
    SELECT DISTINCT scan_date, query_uri, query_generation
    FROM id2.matches
    WHERE
      rank = 1
      OR scan_date <= (
        SELECT MAX(CAST(CONCAT(SUBSTR(run_id, 1, 4), '-', SUBSTR(run_id, 5, 2), '-', SUBSTR(run_id, 7, 2)) AS DATE))
        FROM id2.takedowns
      )
  ) AS q
  GROUP BY scan_date
  UNION ALL
  SELECT scan_date, 0, 0, 0, 0, SUM(matches), SUM(reviews),
    SUM(CASE WHEN matches > 0 THEN 1 ELSE 0 END),
    SUM(CASE WHEN matches = 0 THEN 1 ELSE 0 END)
  FROM flagged_uploads
  GROUP BY scan_date
  UNION ALL
  SELECT
    CAST(CONCAT(SUBSTR(run_id, 1, 4), '-', SUBSTR(run_id, 5, 2), '-', SUBSTR(run_id, 7, 2)) AS DATE),
    SUM(uploads), SUM(rejects), 0, 0, 0, 0, 0, 0
  FROM (
    SELECT run_id, COUNT(*) AS uploads, 0 AS rejects FROM id2.query_embeddings GROUP BY run_id
    UNION ALL
    SELECT segment, COUNT(*), 0 FROM id2.query_removals GROUP BY segment
    UNION ALL
    SELECT run_id, 0, COUNT(*) FROM id2.query_rejects GROUP BY run_id
  ) AS taken
  GROUP BY run_id
)
SELECT
  scan_date,
  CAST(SUM(uploads) AS BIGINT) AS uploads,
  CAST(SUM(rejects) AS BIGINT) AS rejects,
  CAST(SUM(uploads_with_pairs) AS BIGINT) AS uploads_with_pairs,
  CAST(SUM(pairs) AS BIGINT) AS pairs,
  CAST(SUM(matches) AS BIGINT) AS matches,
  CAST(SUM(reviews) AS BIGINT) AS reviews,
  CAST(SUM(uploads_matched) AS BIGINT) AS uploads_matched,
  CAST(SUM(uploads_in_review) AS BIGINT) AS uploads_in_review
FROM counts
GROUP BY scan_date;

CREATE OR REPLACE VIEW id2.by_reference AS
-- A row per reference picture that any stored pair names.
-- first_seen and last_seen are of its matches; both are null for a picture without one.
WITH uploads AS (
  SELECT
    reference_id,
    MIN(reference_uri) AS reference_uri,
    COUNT(*) AS pairs,
    SUM(CASE WHEN verdict = 'match' THEN 1 ELSE 0 END) AS matches,
    SUM(CASE WHEN verdict = 'review' THEN 1 ELSE 0 END) AS reviews,
    MIN(CASE WHEN verdict = 'match' THEN scanned_at END) AS first_seen,
    MAX(CASE WHEN verdict = 'match' THEN scanned_at END) AS last_seen
  FROM id2.judged
  GROUP BY reference_id, query_uri, query_generation
)
SELECT
  reference_id,
  MIN(reference_uri) AS reference_uri,
  CAST(SUM(pairs) AS BIGINT) AS pairs,
  COUNT(*) AS uploads,
  CAST(SUM(CASE WHEN matches > 0 THEN 1 ELSE 0 END) AS BIGINT) AS uploads_matched,
  CAST(SUM(CASE WHEN matches = 0 AND reviews > 0 THEN 1 ELSE 0 END) AS BIGINT) AS uploads_in_review,
  MIN(first_seen) AS first_seen,
  MAX(last_seen) AS last_seen
FROM uploads
GROUP BY reference_id;

CREATE OR REPLACE VIEW id2.backscan AS
-- A row per reference segment and transform: how far it was searched in the uploads that were there first.
-- hours is null until every such segment of uploads that still has rows was searched.
WITH ids AS (
  SELECT DISTINCT encoder_id, transform_id FROM id2.reference_embeddings
),
uploads AS (
  SELECT s.number, s.added_at, e.encoder_id, e.transform_id
  FROM id2.segments AS s
  JOIN (SELECT DISTINCT run_id, encoder_id, transform_id FROM id2.query_embeddings) AS e
    ON e.run_id = s.segment
  WHERE s.corpus = 'queries'
),
meetings AS (
  SELECT
    r.segment,
    r.number,
    r.added_at,
    r.rows AS reference_rows,
    ids.encoder_id,
    ids.transform_id,
    u.number AS upload_number,
    MIN(l.searched_at) AS searched_at
  FROM id2.segments AS r
  CROSS JOIN ids
  LEFT JOIN uploads AS u
    ON u.encoder_id = ids.encoder_id
    AND u.transform_id = ids.transform_id
    AND u.added_at <= r.added_at
  LEFT JOIN id2.ledger AS l
    ON l.encoder_id = ids.encoder_id
    AND l.transform_id = ids.transform_id
    AND r.number BETWEEN l.reference_from AND l.reference_to
    AND u.number BETWEEN l.query_from AND l.query_to
  WHERE r.corpus = 'reference'
  GROUP BY r.segment, r.number, r.added_at, r.rows, ids.encoder_id, ids.transform_id, u.number
)
SELECT
  segment,
  number,
  added_at,
  reference_rows,
  encoder_id,
  transform_id,
  COUNT(upload_number) AS upload_segments,
  COUNT(searched_at) AS upload_segments_searched,
  MAX(searched_at) AS last_searched_at,
  CASE
    WHEN COUNT(upload_number) = 0 THEN 0.0
    WHEN COUNT(upload_number) = COUNT(searched_at)
      THEN GREATEST(0.0, (UNIX_SECONDS(MAX(searched_at)) - UNIX_SECONDS(added_at)) / 3600)
  END AS hours
FROM meetings
GROUP BY segment, number, added_at, reference_rows, encoder_id, transform_id;

CREATE OR REPLACE VIEW id2.rejects_by_reason AS
-- Listed objects of which nothing was made, by corpus, UTC date, and reason.
SELECT
  corpus,
  CAST(CONCAT(SUBSTR(run_id, 1, 4), '-', SUBSTR(run_id, 5, 2), '-', SUBSTR(run_id, 7, 2)) AS DATE)
    AS scan_date,
  reason,
  CAST(SUM(objects) AS BIGINT) AS objects
FROM (
  SELECT 'reference' AS corpus, run_id, reason, COUNT(*) AS objects
  FROM id2.reference_rejects
  GROUP BY run_id, reason
  UNION ALL
  SELECT 'queries' AS corpus, run_id, reason, COUNT(*) AS objects
  FROM id2.query_rejects
  GROUP BY run_id, reason
) AS rejects
GROUP BY corpus, scan_date, reason;

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
  AND o.transform_id = j.transform_id

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
  AND COALESCE(v.channel, 'latent') = COALESCE(m.channel, 'latent')

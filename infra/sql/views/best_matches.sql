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
FROM id2.judged AS j

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
GROUP BY reference_id

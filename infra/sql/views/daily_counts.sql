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
GROUP BY scan_date

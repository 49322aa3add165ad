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
GROUP BY segment, number, added_at, reference_rows, encoder_id, transform_id

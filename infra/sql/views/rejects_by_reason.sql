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
GROUP BY corpus, scan_date, reason

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
WHERE choice = 1

locals {
  sql    = "${path.module}/../sql"
  parsed = jsondecode(file("${local.sql}/tables.json"))
  place  = "gs://${google_storage_bucket.buckets["results"].name}/${var.nightly_folder}"

  external = { for name, table in local.parsed.tables : name => table if !contains(var.empty_tables, name) }
  empty    = { for name, table in local.parsed.tables : name => table if contains(var.empty_tables, name) }

  # Every view reads tables, and some read the first one, `judged`.
  queries = {
    for name in local.parsed.views : name =>
    replace(file("${local.sql}/views/${name}.sql"), "/\\bid2\\.(\\w+)/", "`${var.project}.${var.dataset}.$1`")
  }
}

resource "google_bigquery_dataset" "id2" {
  dataset_id  = var.dataset
  location    = var.region
  description = "Tables and views of ID² (docs/data.md)."

  default_encryption_configuration {
    kms_key_name = var.kms_key
  }
}

resource "google_bigquery_table" "external" {
  #checkov:skip=CKV_GCP_80:the files are in a bucket that has the key
  for_each = local.external

  dataset_id          = google_bigquery_dataset.id2.dataset_id
  table_id            = each.key
  deletion_protection = true

  external_data_configuration {
    autodetect    = false
    source_format = "PARQUET"
    source_uris   = ["${local.place}/${replace(each.value.folder, "CHANNEL", var.channel)}/*.parquet"]
    schema        = jsonencode(each.value.columns)

    dynamic "hive_partitioning_options" {
      for_each = each.value.partition == "" ? [] : [each.value.partition]
      content {
        mode              = "CUSTOM"
        source_uri_prefix = "${local.place}/${each.value.folder}/{${hive_partitioning_options.value}:DATE}"
      }
    }
  }
}

resource "google_bigquery_table" "empty" {
  #checkov:skip=CKV_GCP_80:it holds no bytes
  #checkov:skip=CKV_GCP_121:a view can be made again
  for_each = local.empty

  dataset_id          = google_bigquery_dataset.id2.dataset_id
  table_id            = each.key
  deletion_protection = false

  view {
    use_legacy_sql = false
    query = join(" ", [
      "SELECT",
      join(", ", [for column in each.value.columns : "CAST(NULL AS ${column.type}) AS `${column.name}`"]),
      "FROM UNNEST([1]) WHERE FALSE",
    ])
  }
}

resource "google_bigquery_table" "judged" {
  #checkov:skip=CKV_GCP_80:it holds no bytes
  #checkov:skip=CKV_GCP_121:a view can be made again
  dataset_id          = google_bigquery_dataset.id2.dataset_id
  table_id            = "judged"
  deletion_protection = false

  view {
    use_legacy_sql = false
    query          = local.queries["judged"]
  }

  depends_on = [google_bigquery_table.external, google_bigquery_table.empty]
}

resource "google_bigquery_table" "views" {
  #checkov:skip=CKV_GCP_80:it holds no bytes
  #checkov:skip=CKV_GCP_121:a view can be made again
  for_each = { for name, query in local.queries : name => query if name != "judged" }

  dataset_id          = google_bigquery_dataset.id2.dataset_id
  table_id            = each.key
  deletion_protection = false

  view {
    use_legacy_sql = false
    query          = each.value
  }

  depends_on = [google_bigquery_table.judged]
}

resource "google_bigquery_dataset_iam_member" "readers" {
  for_each = var.dashboard_readers

  dataset_id = google_bigquery_dataset.id2.dataset_id
  role       = "roles/bigquery.dataViewer"
  member     = each.value
}

# An external table is read with the rights of who asks.
resource "google_storage_bucket_iam_member" "readers" {
  for_each = var.dashboard_readers

  bucket = google_storage_bucket.buckets["results"].name
  role   = "roles/storage.objectViewer"
  member = each.value
}

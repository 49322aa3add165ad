resource "google_service_account" "worker" {
  account_id   = "id2-worker"
  display_name = "ID² Prefect worker: starts scans and Dataflow jobs"
}

resource "google_service_account" "dataflow" {
  account_id   = "id2-dataflow"
  display_name = "ID² Dataflow workers: read pictures, write results"
}

locals {
  accounts = {
    worker   = google_service_account.worker.member
    dataflow = google_service_account.dataflow.member
  }

  # Sources are read, results and temporary objects written.
  bucket_roles = {
    protected = "roles/storage.objectViewer"
    uploads   = "roles/storage.objectViewer"
    results   = "roles/storage.objectUser"
    temp      = "roles/storage.objectUser"
  }

  bucket_grants = {
    for pair in setproduct(keys(local.accounts), keys(local.bucket_roles)) :
    "${pair[0]}-${pair[1]}" => { member = local.accounts[pair[0]], bucket = pair[1], role = local.bucket_roles[pair[1]] }
  }
}

resource "google_storage_bucket_iam_member" "grants" {
  for_each = local.bucket_grants

  bucket = google_storage_bucket.buckets[each.value.bucket].name
  role   = each.value.role
  member = each.value.member
}

resource "google_project_iam_member" "dataflow_worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.dataflow.member
}

resource "google_project_iam_member" "worker_starts_jobs" {
  #checkov:skip=CKV_GCP_49:jobs belong to a project; which account they run as is one grant below
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.worker.member
}

resource "google_project_iam_member" "worker_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.worker.member
}

# Jobs run as the account of Dataflow, and as no other.
resource "google_service_account_iam_member" "worker_uses_dataflow" {
  service_account_id = google_service_account.dataflow.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.worker.member
}

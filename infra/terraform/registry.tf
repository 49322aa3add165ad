resource "google_artifact_registry_repository" "images" {
  repository_id = "id2"
  description   = "Images of the Prefect worker and of the Beam workers."
  location      = var.region
  format        = "DOCKER"
  kms_key_name  = var.kms_key

  docker_config {
    immutable_tags = true
  }
}

resource "google_artifact_registry_repository_iam_member" "readers" {
  for_each = local.accounts

  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = each.value
}

locals {
  registry = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
  images = {
    prefect = "${local.registry}/prefect-worker:${var.image_tag}"
    beam    = "${local.registry}/beam-worker:${var.image_tag}"
  }
}

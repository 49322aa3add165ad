# One machine that runs the Prefect worker: it starts nights, and jobs on Dataflow.
locals {
  # The key of the server is read when the machine starts and is in no metadata and no file of this module.
  start = <<-EOT
    #!/bin/bash
    set -euo pipefail
    export HOME=/var/lib/id2
    mkdir -p "$HOME" && chmod 700 "$HOME"
    token() {
      curl --silent --fail --header 'Metadata-Flavor: Google' \
        http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token |
        sed 's/.*"access_token":"\([^"]*\)".*/\1/'
    }
    secret() {
      curl --silent --fail --header "Authorization: Bearer $(token)" \
        "https://secretmanager.googleapis.com/v1/projects/${var.project}/secrets/$1/versions/latest:access" |
        sed -n 's/.*"data": *"\([^"]*\)".*/\1/p' | base64 --decode
    }
    PREFECT_API_KEY=$(secret id2-prefect-api-key)
    export PREFECT_API_KEY
    docker-credential-gcr configure-docker --registries=${var.region}-docker.pkg.dev
    docker rm --force id2-worker 2>/dev/null || true
    docker run --detach --name id2-worker --restart always \
      --cap-drop ALL --security-opt no-new-privileges \
      --env PREFECT_API_KEY --env PREFECT_API_URL='${var.prefect_api_url}' \
      ${local.images.prefect}
  EOT
}

resource "google_compute_instance" "worker" {
  name                      = "id2-worker"
  machine_type              = var.worker_machine
  zone                      = var.zone
  allow_stopping_for_update = true

  boot_disk {
    kms_key_self_link = var.kms_key
    initialize_params {
      image = "cos-cloud/cos-stable"
      size  = 100
    }
  }

  # No address of its own: the subnetwork reaches Google's services and the Prefect server.
  network_interface {
    subnetwork = var.subnetwork
  }

  metadata = {
    startup-script         = local.start
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    google-logging-enabled = "TRUE"
  }

  service_account {
    email  = google_service_account.worker.email
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  depends_on = [google_secret_manager_secret_iam_member.worker, google_artifact_registry_repository_iam_member.readers]
}

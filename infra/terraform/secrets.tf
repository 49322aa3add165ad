# The values are not here: add a version of each by hand, or by `gcloud secrets versions add`.
locals {
  secrets = {
    id2-prefect-api-key = "Key of the Prefect server."
    id2-prompt-api-key  = "Key of the endpoint that writes prompts for `id2 translate`."
    id2-webhook-url     = "Where notifications go."
  }
}

resource "google_secret_manager_secret" "secrets" {
  for_each = local.secrets

  secret_id   = each.key
  annotations = { description = each.value }

  replication {
    user_managed {
      replicas {
        location = var.region
        customer_managed_encryption {
          kms_key_name = var.kms_key
        }
      }
    }
  }
}

resource "google_secret_manager_secret_iam_member" "worker" {
  for_each = google_secret_manager_secret.secrets

  secret_id = each.value.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.worker.member
}

locals {
  # What each bucket holds, and after how many days objects are deleted (0: never).
  buckets = {
    protected = { days = 0 }
    uploads   = { days = 0 }
    results   = { days = 0 }
    temp      = { days = 7 }
  }
}

resource "google_storage_bucket" "buckets" {
  for_each = local.buckets

  name                        = "${var.project}-id2-${each.key}"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  encryption {
    default_kms_key_name = var.kms_key
  }

  logging {
    log_bucket        = var.log_bucket
    log_object_prefix = "${var.project}-id2-${each.key}"
  }

  versioning {
    enabled = true
  }

  # A taken-down picture must not live on as an old version.
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      with_state                 = "ARCHIVED"
      days_since_noncurrent_time = 7
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.days > 0 ? [each.value.days] : []
    content {
      action {
        type = "Delete"
      }
      condition {
        age = lifecycle_rule.value
      }
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

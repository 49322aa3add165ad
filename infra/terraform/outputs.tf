output "places" {
  description = "Parameters of the nightly deployment."
  value = {
    reference = "gs://${google_storage_bucket.buckets["protected"].name}"
    queries   = "gs://${google_storage_bucket.buckets["uploads"].name}"
    out       = local.place
  }
}

output "images" {
  description = "Push the two images here."
  value       = local.images
}

# A job with GPUs takes them with `id2 embed … --template_location=…`, or in a deployment as `beam_arguments`.
output "beam_arguments" {
  description = "Arguments of a Dataflow job with a GPU per worker."
  value = [
    "--runner=DataflowRunner",
    "--project=${var.project}",
    "--region=${var.region}",
    "--temp_location=gs://${google_storage_bucket.buckets["temp"].name}/dataflow",
    "--service_account_email=${google_service_account.dataflow.email}",
    "--subnetwork=${var.subnetwork}",
    "--no_use_public_ips",
    "--dataflow_kms_key=${var.kms_key}",
    "--sdk_container_image=${local.images.beam}",
    "--machine_type=${var.gpu.machine}",
    "--disk_size_gb=50",
    "--max_num_workers=${var.max_dataflow_workers}",
    "--dataflow_service_options=worker_accelerator=type:${var.gpu.type};count:1;install-nvidia-driver:5xx",
    "--experiments=no_use_multiple_sdk_containers",
  ]
}

output "template_location" {
  description = "Where `id2 embed … --template_location` stages a job."
  value       = "gs://${google_storage_bucket.buckets["results"].name}/templates/embed.json"
}

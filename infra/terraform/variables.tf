variable "project" {
  description = "Id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the buckets, the images, and the jobs. It needs GPUs for Dataflow."
  type        = string
  default     = "europe-west4"
}

variable "zone" {
  description = "Zone of the Prefect worker."
  type        = string
  default     = "europe-west4-a"
}

variable "subnetwork" {
  description = "Self link of a subnetwork with Private Google Access. It must reach the Prefect server."
  type        = string
}

variable "prefect_api_url" {
  description = "Where the Prefect server is, for example https://prefect.example.com/api."
  type        = string
}

variable "image_tag" {
  description = "Tag of both images: a version, never latest."
  type        = string

  validation {
    condition     = var.image_tag != "latest"
    error_message = "Name a version: an image that changes under a job changes its results."
  }
}

variable "kms_key" {
  description = "Cloud KMS key that encrypts buckets, tables, images, and the worker's disk. Its region is that of the rest, and Google's service agents may use it."
  type        = string
}

variable "log_bucket" {
  description = "Bucket that takes the access logs of the buckets made here."
  type        = string
}

variable "dataset" {
  description = "BigQuery data set of the tables and views."
  type        = string
  default     = "id2"
}

variable "nightly_folder" {
  description = "Folder of the results bucket that is the --out of the nightly scan."
  type        = string
  default     = "nightly"
}

variable "empty_tables" {
  description = "Tables that have no Parquet file yet. BigQuery refuses an external table without files, so these are views without rows. Take a name out when its first file is there."
  type        = set(string)
  default     = ["verdicts", "query_rejects", "query_removals", "query_backgrounds", "reference_rejects", "reference_removals", "channel_query_embeddings", "channel_reference_embeddings"]
}

variable "channel" {
  description = "Name of the second channel of the nightly scan (--also), a folder in channels/ below its --out. Take the two tables of channels out of empty_tables, too."
  type        = string
  default     = "none"
}

variable "dashboard_readers" {
  description = "Who may read the tables, for example [\"group:trust-and-safety@example.com\"]."
  type        = set(string)
  default     = []
}

variable "worker_machine" {
  description = "Machine type of the Prefect worker, which also runs small scans itself."
  type        = string
  default     = "e2-standard-4"
}

variable "gpu" {
  description = "GPU of the Dataflow workers, and a machine type that takes it."
  type        = object({ type = string, machine = string })
  default     = { type = "nvidia-tesla-t4", machine = "n1-standard-8" }
}

variable "max_dataflow_workers" {
  description = "Dataflow workers at most. It bounds what a night may cost."
  type        = number
  default     = 20
}

"""Where data lies: objects in folders and buckets, Arrow schemas, committed data sets, reject reasons."""

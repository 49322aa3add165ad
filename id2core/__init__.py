"""The ID² method and its data contracts; knows neither Beam nor Prefect."""

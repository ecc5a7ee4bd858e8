"""The pages of the app: widgets, then services, then plots. No science and no data reshaping here."""

-- The warehouse on PostgreSQL, from schema version 6 to 7: monitoring, incidents, the watch.

-- == profiles of published runs and of days, and what drift found in them ==

-- == end of profiles of published runs and of days, and what drift found in them ==

-- == performance on late labels ==

-- == end of performance on late labels ==

-- == incidents, the outbox and mutes ==

-- == end of incidents, the outbox and mutes ==

-- == the watch ==

-- == end of the watch ==

-- == the prediction API ==

-- == end of the prediction API ==

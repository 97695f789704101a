-- What pruning has to know of packs.

-- campaign_id: the campaign that its runners delivered the pack for, or will deliver it for. While that has
-- calculations under way, later packs of theirs may rely on blobs in it that no node names.
-- dead_since: since when no blob lies in it any more; the object goes a grace period later.
ALTER TABLE pack ADD COLUMN campaign_id integer REFERENCES "group" ON DELETE SET NULL;
ALTER TABLE pack ADD COLUMN dead_since timestamptz;
CREATE INDEX pack_campaign ON pack (campaign_id) WHERE campaign_id IS NOT NULL;

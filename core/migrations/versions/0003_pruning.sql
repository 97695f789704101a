-- What pruning has to know of packs.

-- campaign_id: the campaign that its runners delivered the pack for, or will deliver it for. While that has
-- calculations under way, later packs of theirs may rely on blobs in it that no node names.
-- dead_since: since when no blob lies in it any more; the object goes a grace period later.
ALTER TABLE pack ADD COLUMN campaign_id integer REFERENCES "group" ON DELETE SET NULL;
ALTER TABLE pack ADD COLUMN dead_since timestamptz;
CREATE INDEX pack_campaign ON pack (campaign_id) WHERE campaign_id IS NOT NULL;

-- Whoever adds blobs has written the row of their pack in the same statement, so that nobody deletes it meanwhile: the
-- rule is checked by who deletes packs, once, and not for each of millions of blobs.
ALTER TABLE blob DROP CONSTRAINT blob_pack_id_fkey;
CREATE FUNCTION refuse_while_blobs_remain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    SELECT gone.name INTO wrong FROM gone WHERE EXISTS (SELECT FROM blob WHERE blob.pack_id = gone.id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'pack % still has blobs', wrong
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'blob_pack';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER pack_in_use AFTER DELETE ON pack REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_while_blobs_remain();

PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE calls (
    time        REAL NOT NULL,
    command     TEXT NOT NULL
);
INSERT INTO "calls" VALUES(1.79525351369716739649e+09,'the command');
CREATE TABLE evaluations (
    run         TEXT NOT NULL REFERENCES runs (key),
    kind        TEXT NOT NULL CHECK (kind IN ('training', 'test')),
    step        INTEGER NOT NULL,
    mean_return REAL NOT NULL,
    returns     TEXT NOT NULL,     -- JSON, one per episode
    lengths     TEXT NOT NULL,     -- JSON, the same episodes
    seconds     REAL NOT NULL,
    PRIMARY KEY (run, kind, step)
);
INSERT INTO "evaluations" VALUES('6140d58c09924ba5d35306434fecd92f428f2a9b7ccce5f8395d6fe35280c415','training',0,1.5,'[1.0, 2.0]','[10, 11]',0.25);
INSERT INTO "evaluations" VALUES('6140d58c09924ba5d35306434fecd92f428f2a9b7ccce5f8395d6fe35280c415','training',100,5.5,'[5.0, 6.0]','[10, 11]',0.25);
INSERT INTO "evaluations" VALUES('6140d58c09924ba5d35306434fecd92f428f2a9b7ccce5f8395d6fe35280c415','test',100,7.5,'[7.0, 8.0]','[10, 11]',0.25);
CREATE TABLE runs (
    key         TEXT PRIMARY KEY,  -- SHA-256 of the content of the run
    settings    TEXT NOT NULL,     -- the same without seeds
    label       TEXT NOT NULL,
    env         TEXT NOT NULL,
    replicate   INTEGER NOT NULL,
    spec        TEXT NOT NULL,     -- canonical JSON
    shown       INTEGER NOT NULL DEFAULT 1,  -- 0: replaced by a run with other settings under the same label
    status      TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'finished', 'failed')),
    owner       TEXT,
    heartbeat   REAL,              -- Unix time of the last sign of life
    step        INTEGER NOT NULL DEFAULT 0,
    seconds     REAL NOT NULL DEFAULT 0,     -- of training so far
    deaths      INTEGER NOT NULL DEFAULT 0,
    created     REAL NOT NULL,
    started     REAL,
    ended       REAL,
    outcome     TEXT,              -- JSON: seconds of wall clock, CPU and training
    error       TEXT,              -- traceback
    provenance  TEXT               -- JSON: commit, machine, command
);
INSERT INTO "runs" VALUES('6140d58c09924ba5d35306434fecd92f428f2a9b7ccce5f8395d6fe35280c415','0ad2a9ba6b452ffa27d7eb47b96b065a37c67d5e15976f7ae2c82bc5b2af250c','ppo','CartPole-v1',0,'{"algo":"ppo","arguments":{},"environment":{"frame_stack":null,"id":"CartPole-v1","kwargs":{},"n_envs":1,"normalize":null,"vec_env":"dummy","wrappers":[]},"hyperparameters":{"gamma":0.99},"label":"ppo","policy":null,"protocol":{"deterministic":true,"episodes":20,"every":50,"test_episodes":100},"replicate":0,"seeds":{"evaluation":391977079,"test":598168173,"train":127766640},"threads":1,"total_steps":100,"versions":{"torch":"2"}}',1,'finished','elsewhere|boot|1|2',1.79525351372108364104e+09,100,0.0,0,1.79525351369752264023e+09,1.79525351370108699798e+09,1.79525351372914648059e+09,'{"steps": 100, "wall_seconds": 2.0, "cpu_seconds": 1.5, "train_seconds": 1.0}',NULL,'{"git": "abc"}');
INSERT INTO "runs" VALUES('104c7fbace37b5cb8c95f1c59b649d6fdcaeaa7325518c43e4767f96bb9ff78e','0ad2a9ba6b452ffa27d7eb47b96b065a37c67d5e15976f7ae2c82bc5b2af250c','ppo','CartPole-v1',1,'{"algo":"ppo","arguments":{},"environment":{"frame_stack":null,"id":"CartPole-v1","kwargs":{},"n_envs":1,"normalize":null,"vec_env":"dummy","wrappers":[]},"hyperparameters":{"gamma":0.99},"label":"ppo","policy":null,"protocol":{"deterministic":true,"episodes":20,"every":50,"test_episodes":100},"replicate":1,"seeds":{"evaluation":381361320,"test":588850152,"train":111914829},"threads":1,"total_steps":100,"versions":{"torch":"2"}}',1,'running','elsewhere|boot|1|2',1.79525351373726391786e+09,30,0.5,0,1.79525351369786214826e+09,1.79525351373304581639e+09,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('0d2b5155c824a14abfe836ac711827a7139d43475f31a87dc8e327f9f3e503a5','0ad2a9ba6b452ffa27d7eb47b96b065a37c67d5e15976f7ae2c82bc5b2af250c','ppo','CartPole-v1',2,'{"algo":"ppo","arguments":{},"environment":{"frame_stack":null,"id":"CartPole-v1","kwargs":{},"n_envs":1,"normalize":null,"vec_env":"dummy","wrappers":[]},"hyperparameters":{"gamma":0.99},"label":"ppo","policy":null,"protocol":{"deterministic":true,"episodes":20,"every":50,"test_episodes":100},"replicate":2,"seeds":{"evaluation":300204766,"test":596313243,"train":31528503},"threads":1,"total_steps":100,"versions":{"torch":"2"}}',1,'failed','elsewhere|boot|1|2',1.79525351374107575413e+09,0,0.0,0,1.79525351369800615307e+09,1.79525351374107575413e+09,1.79525351374154973037e+09,NULL,'Traceback: boom','{}');
COMMIT;
